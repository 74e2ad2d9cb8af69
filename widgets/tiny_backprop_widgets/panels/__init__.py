"""Controls and their answers: sliders, trade-off, verification; imports `views`, `content` and `background`."""
