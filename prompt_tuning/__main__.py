"""`python -m prompt_tuning VERB` is the same as `prompt-tuning VERB`."""

import sys

from prompt_tuning.cli import main

if __name__ == '__main__':
  sys.exit(main.main())
