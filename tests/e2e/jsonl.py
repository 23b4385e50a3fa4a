"""What a run writes line by line."""

import json


def read(path):
  """The records of a JSONL file."""
  return [json.loads(line) for line in path.read_text().splitlines()]
