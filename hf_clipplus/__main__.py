"""`python -m hf_clipplus`: see `hf_clipplus.cli`."""

from .cli import main

if __name__ == "__main__":
    main()
