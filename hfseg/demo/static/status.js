// How far each model is, in words; names and reasons are only ever set as text.
const list = element.querySelector(".states");

function showStates() {
  list.replaceChildren(...(props.value || []).map((one) => {
    const pill = document.createElement("span");
    pill.dataset.state = one.state;
    pill.textContent = one.text;
    pill.title = one.reason || one.text;
    return pill;
  }));
}

watch("value", showStates);
showStates();
