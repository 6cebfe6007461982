"""How good a model is (`metrics`), drawn (`plots`) and told (`page`). Import the file you need: only one is cheap."""
