"""Controls and their answers: sliders, trade-off, verification; imports `views`."""
