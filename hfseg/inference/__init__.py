"""The parts of a `Segmenter`: reading ahead, windows, views, modes, where the time goes."""
