"""How the pages look: one style sheet, light and dark, from a phone to a wide screen."""

STYLE = """
:root {
  --back: #fbfbfa; --raised: #fff; --text: #1c1e21; --quiet: #5d646d; --line: #e2e4e7; --soft: #f1f2f3;
  --link: #0b6b63; --accent: #0f766e; --warn: #8a4b00; --warn-back: #fdf1dd; --bad: #b3261e; --good: #19703b;
  --code: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #121416; --raised: #1a1d20; --text: #e4e6e9; --quiet: #9aa2ab; --line: #2e3338; --soft: #22262a;
    --link: #6cd4c4; --accent: #2dbfae; --warn: #f0bd72; --warn-back: #35280f; --bad: #ff8f85; --good: #74cf95;
  }
}
* { box-sizing: border-box; }
html { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); overflow-wrap: break-word; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
a:focus-visible, button:focus-visible, input:focus-visible, select:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
td, th, h1, h2, li, .isolate { unicode-bidi: isolate; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: .5rem; background: var(--raised); padding: .3rem .6rem; z-index: 2; }

header { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1.4rem; padding: .65rem max(1rem, 50% - 38rem);
  border-bottom: 1px solid var(--line); background: var(--raised); }
header nav { display: flex; gap: 1.1rem; }
header nav a, header .who a { color: var(--text); }
header form[role=search] { flex: 1 1 12rem; max-width: 24rem; margin-left: auto; }
header input { width: 100%; }
.who, .who form { display: flex; gap: .9rem; align-items: center; }
.brand { font-weight: 700; color: var(--accent); letter-spacing: -.01em; font-size: 1.1rem; }
main { padding: 1.6rem max(1rem, 50% - 38rem) 3rem; min-height: 70vh; }
footer { padding: 1rem max(1rem, 50% - 38rem) 2rem; color: var(--quiet); border-top: 1px solid var(--line);
  font-size: .87rem; }

h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; letter-spacing: -.015em; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 0 0 .5rem; font-weight: 650; }
h1 a { color: inherit; }
h1 .owner { font-weight: 400; color: var(--quiet); }
p { margin: 0 0 .8rem; }
.quiet, small { color: var(--quiet); }
.quiet a { color: inherit; text-decoration: underline; text-decoration-color: var(--line); }
.problem { color: var(--bad); }
.note { background: var(--warn-back); color: var(--warn); padding: .55rem .8rem; border-radius: 6px; }
.narrow { max-width: 34rem; margin: 2rem auto; }
.box { background: var(--raised); border: 1px solid var(--line); border-radius: 9px; padding: 1rem 1.1rem;
  margin: 0 0 1.1rem; }

code, pre { font-family: var(--code); font-size: .86em; }
code { background: var(--soft); padding: .12em .35em; border-radius: 4px; }
pre { background: var(--soft); padding: .75rem .9rem; border-radius: 7px; overflow-x: auto; margin: 0 0 .9rem;
  line-height: 1.5; tab-size: 4; }
pre code { background: none; padding: 0; font-size: inherit; }

input, button, select { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line);
  border-radius: 6px; padding: .35rem .65rem; }
input::placeholder { color: var(--quiet); opacity: 1; }
button { background: var(--accent); border-color: var(--accent); color: #fff; cursor: pointer; font-weight: 600; }
@media (prefers-color-scheme: dark) { button { color: #06201d; } }
button.plain { background: none; border: 0; color: var(--quiet); padding: 0; font-weight: 400; }
button.plain:hover { text-decoration: underline; }
form.stacked { display: grid; gap: .9rem; margin: 1rem 0; }
form.stacked label { display: grid; gap: .3rem; font-weight: 600; }
form.filter { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1.4rem; }
form.filter input { flex: 1 1 6.5rem; min-width: 0; }

.badge { display: inline-block; font-size: .78rem; line-height: 1.5; padding: 0 .5em; border-radius: 5px;
  border: 1px solid var(--line); background: var(--soft); color: var(--quiet); vertical-align: middle;
  max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
h1 .badge { font-weight: 400; letter-spacing: 0; }
.badge.private, .badge.gated { background: var(--warn-back); color: var(--warn); border-color: transparent; }
.badge.open, .badge.added { color: var(--good); }
.badge.closed, .badge.removed { color: var(--bad); }
.badge.merged { color: var(--link); }
.tags { display: flex; flex-wrap: wrap; gap: .3rem; }

.repos { list-style: none; margin: 0 0 .7rem; padding: 0; border: 1px solid var(--line); border-radius: 9px;
  background: var(--raised); }
.repos > li { padding: .7rem 1rem; display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem 1rem; }
.repos > li + li { border-top: 1px solid var(--line); }
.repos .name { font-weight: 600; overflow-wrap: anywhere; }
.repos .name .owner { font-weight: 400; }
.repos .facts { color: var(--quiet); font-size: .87rem; text-align: right; white-space: nowrap; }
.repos .more { grid-column: 1 / -1; color: var(--quiet); font-size: .87rem; display: flex; flex-wrap: wrap;
  gap: .4rem; }
.group { margin: 0 0 1.9rem; }
.group > h2 { display: flex; gap: .6rem; align-items: baseline; }
.group > h2 small { font-weight: 400; }

.tabs { display: flex; flex-wrap: wrap; gap: 0 1.3rem; border-bottom: 1px solid var(--line); margin: .9rem 0 1.3rem; }
.tabs a { padding: .4rem 0; color: var(--quiet); border-bottom: 2px solid transparent; margin-bottom: -1px; }
.tabs a[aria-current] { color: var(--text); border-color: var(--accent); font-weight: 600; }
.bar { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: 0 0 .9rem; }
.bar .path { overflow-wrap: anywhere; }
.bar .right { margin-left: auto; }
details.revisions { position: relative; }
details.revisions > summary { cursor: pointer; border: 1px solid var(--line); border-radius: 6px;
  background: var(--raised); padding: .2rem .7rem; max-width: 16rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
details.revisions > div { position: absolute; z-index: 1; background: var(--raised); border: 1px solid var(--line);
  border-radius: 8px; padding: .7rem .9rem; margin-top: .3rem; width: max-content; max-width: min(22rem, 85vw);
  max-height: 60vh; overflow: auto; box-shadow: 0 8px 24px #0003; }
details.revisions h3 { font-size: .78rem; color: var(--quiet); margin: .5rem 0 .2rem; font-weight: 600; }
details.revisions h3:first-child { margin-top: 0; }
details.revisions a { display: block; padding: .1rem 0; overflow-wrap: anywhere; }
details.revisions a[aria-current] { font-weight: 650; }

.scroll { overflow-x: auto; margin: 0 0 .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; }
th, td { padding: .32rem .8rem .32rem 0; vertical-align: top; }
thead th { border-bottom: 1px solid var(--line); color: var(--quiet); font-size: .87rem; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.left { text-align: left; } .center { text-align: center; } .right { text-align: right; }
table.list { width: 100%; background: var(--raised); border-collapse: separate; border-spacing: 0;
  border: 1px solid var(--line); border-radius: 9px; }
table.list th, table.list td { padding: .45rem .9rem; }
table.list th.number { text-align: right; }
table.list td.number { text-align: right; white-space: nowrap; color: var(--quiet); }
table.list td.name { overflow-wrap: anywhere; min-width: 9rem; }
table.list td.fit { white-space: nowrap; color: var(--quiet); }
table.list td.title { color: var(--quiet); max-width: 24rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
table.list td.title a { color: inherit; }
.icon { width: 1em; height: 1em; vertical-align: -.12em; margin-right: .5em; fill: var(--quiet); }
.icon.folder { fill: var(--accent); }

.with-side { display: grid; grid-template-columns: minmax(0, 1fr) 21rem; grid-template-rows: auto 1fr; gap: 0 2.2rem;
  align-items: start; }
.with-side > :first-child { grid-row: 1 / 3; }
.with-side > aside { grid-column: 2; }
aside { font-size: .93rem; min-width: 0; }
aside table { width: 100%; margin: 0 0 1.1rem; }
aside .scroll { margin: 0; }
aside th { font-weight: 400; color: var(--quiet); }
aside tbody th { width: 7.2rem; }
aside td { overflow-wrap: anywhere; }
aside pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
aside .tags { margin: 0 0 1.1rem; }
aside td.number { text-align: right; width: 4.5rem; white-space: nowrap; }
aside td.gauge { width: 4.2rem; padding-right: 0; }
aside details > summary { cursor: pointer; color: var(--link); margin: 0 0 .6rem; }
aside .use > h3 { font-size: .87rem; color: var(--quiet); font-weight: 400; margin: 0 0 .25rem; }
.gauge svg { display: block; width: 100%; height: .5rem; margin-top: .5em; border-radius: 3px; fill: var(--accent);
  background: var(--soft); }

.card { min-width: 0; }
.card h2 { font-size: 1.5rem; margin: 1.9rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
.card h3 { font-size: 1.2rem; margin: 1.7rem 0 .6rem; }
.card h4, .card h5, .card h6 { font-size: 1rem; margin: 1.3rem 0 .5rem; }
.card > :first-child { margin-top: 0; }
.card img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.card .image::before { content: "image: "; color: var(--quiet); }
.card blockquote { margin: 0 0 .9rem; padding: 0 1rem; border-left: 3px solid var(--line); color: var(--quiet); }
.card hr { border: 0; border-top: 1px solid var(--line); margin: 1.5rem 0; }
.card ul, .card ol { padding-left: 1.5rem; margin: 0 0 .9rem; }
.card details { margin: 0 0 .9rem; }
.card details > summary { cursor: pointer; color: var(--link); }
.card th, .card td { padding: .32rem .9rem; }
.card th:first-child, .card td:first-child { padding-left: .2rem; }

.source { display: flex; background: var(--raised); border: 1px solid var(--line); border-radius: 9px;
  overflow: hidden; }
.source pre { background: none; margin: 0; border-radius: 0; }
.source pre.lines { color: var(--quiet); text-align: right; user-select: none; border-right: 1px solid var(--line);
  flex: none; overflow: hidden; }
.source pre.text { flex: 1; min-width: 0; }
.picture { max-width: 100%; border: 1px solid var(--line); border-radius: 9px; background: repeating-conic-gradient(
  #eee 0 25%, #fff 0 50%) 0 / 16px 16px; }
.history { list-style: none; margin: 0 0 1rem; padding: 0; border: 1px solid var(--line); border-radius: 9px;
  background: var(--raised); }
.history > li { padding: .7rem 1rem; display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 1rem; }
.history > li + li { border-top: 1px solid var(--line); }
.history .title { font-weight: 600; overflow-wrap: anywhere; }
.history .facts { grid-column: 1; }
.history .oid { grid-row: 1 / 3; grid-column: 2; align-self: center; white-space: nowrap; }
.diff .plus { color: var(--good); } .diff .minus { color: var(--bad); } .diff .where { color: var(--quiet); }
.pager { display: flex; gap: 1.2rem; }
.comment > h3 { font-weight: 400; color: var(--quiet); font-size: .9rem; }
.comment > h3 b { color: var(--text); }

@media (max-width: 62rem) {
  .with-side { grid-template-columns: minmax(0, 1fr); gap: .5rem; }
  .with-side > :first-child, .with-side > aside { grid-row: auto; grid-column: 1; }
  .with-side > aside.first { order: -1; }
}
@media (max-width: 40rem) {
  header, header nav { gap: .4rem .8rem; }
  header form[role=search] { order: 3; flex-basis: 100%; max-width: none; }
  header .who { margin-left: auto; }
  main { padding-top: 1.1rem; }
  h1 { font-size: 1.3rem; }
  .repos > li { grid-template-columns: minmax(0, 1fr); }
  .repos .facts { text-align: left; }
  .wide { display: none; }
  table.list th, table.list td { padding: .45rem .6rem; }
}
@media (max-width: 26rem) { header, header nav { gap: .4rem .55rem; font-size: .92rem; } }
@media print { header, footer, .tabs, .bar { display: none; } }
""".strip()

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#0f766e"/>
<path d="M6 6h12v9a9 9 0 0 1-12 8z" fill="#7fe3d4"/><circle cx="21" cy="21" r="6" fill="#ffd27d"/></svg>"""
