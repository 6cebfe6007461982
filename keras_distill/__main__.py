"""`python -m keras_distill`: the command line, where the script is not on the path."""

from keras_distill.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
