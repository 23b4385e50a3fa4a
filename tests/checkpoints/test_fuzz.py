"""Files changed at random: each loads or is refused with one UserError, and that is all."""

import collections
import os
import pathlib
import random
import re
import time

import pytest
from checkpoints import samples

from prompt_tuning.errors import UserError

MUTATIONS = int(os.environ.get('FUZZ_MUTATIONS', 500))  # of each format
SECONDS = 20  # that one file may take on a busy machine
MEGABYTES = 200  # that all files of a format may take
MESSAGE = 4000  # characters of an error

# What a mutation puts in place of a number in a header.
NUMBERS = (b'-1', b'0', b'1', b'1.5', b'NaN', b'1e999', b'null', b'true', b'"x"', b'[]', b'{}',
           b'99999999999', b'9223372036854775807', b'18446744073709551616', b'1' * 5000)
HEAD = 3000  # bytes in which most of a file's structure lies


def flip(rng, raw):
  changed = bytearray(raw)
  for _ in range(rng.randint(1, 4)):
    changed[place(rng, raw)] ^= 1 << rng.randrange(8)
  return bytes(changed)


def truncate(rng, raw):
  return raw[:place(rng, raw)]


def splice(rng, raw):
  """A piece of the file is put elsewhere, over what is there or in between."""
  start, target, size = place(rng, raw), place(rng, raw), rng.randint(1, 40)
  end = target + size if rng.random() < 0.5 else target
  return raw[:target] + raw[start:start + size] + raw[end:]


def cut(rng, raw):
  start = place(rng, raw)
  return raw[:start] + raw[start + rng.randint(1, 40):]


def renumber(rng, raw):
  found = list(re.finditer(rb'\d+', raw[:HEAD]))
  if not found:
    return flip(rng, raw)
  number = rng.choice(found)
  return raw[:number.start()] + rng.choice(NUMBERS) + raw[number.end():]


def extremes(rng, raw):
  """Bytes that are a large length in most binary formats."""
  start = place(rng, raw)
  size = rng.choice((1, 2, 4, 8))
  return raw[:start] + rng.choice((b'\xff', b'\x7f', b'\x00')) * size + raw[start + size:]


def place(rng, raw):
  return rng.randrange(min(len(raw), HEAD) if rng.random() < 0.7 else len(raw))


ALL = (flip, flip, truncate, splice, cut, renumber, extremes)


def kinds_of(files):
  """Files grouped by suffix, or by name: an index is as interesting as a hundred arrays."""
  kinds = collections.defaultdict(list)
  for file in files:
    kinds[file.suffix or file.name].append(file)
  return [kinds[kind] for kind in sorted(kinds)]


def peak_memory():
  """The largest resident set of this process, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024


@pytest.mark.parametrize('name', samples.SAMPLES)
def test_fuzz(name, tmp_path):
  sample = samples.SAMPLES[name]
  path = sample.make(tmp_path / 'sample')
  sample.load(path)
  whole = samples.content(tmp_path)
  kinds = kinds_of(file for file, raw in whole.items() if raw)
  peak, wrong, outcomes = peak_memory(), [], {'loaded': 0, 'refused': 0}
  for number in range(MUTATIONS):
    rng = random.Random(f'{name} {number}')
    file = rng.choice(rng.choice(kinds))
    mutation = rng.choice(ALL)
    file.write_bytes(mutation(rng, whole[file]))
    start = time.monotonic()
    try:
      sample.load(path)
      outcomes['loaded'] += 1
    except UserError as error:
      outcomes['refused'] += 1
      if str(tmp_path) not in str(error) or len(str(error)) > MESSAGE:
        wrong.append((number, file.name, mutation.__name__, f'message: {str(error)[:MESSAGE]}'))
    except Exception as error:
      wrong.append((number, file.name, mutation.__name__, repr(error)[:MESSAGE]))
    if time.monotonic() - start > SECONDS:
      wrong.append((number, file.name, mutation.__name__, f'{time.monotonic() - start} s'))
    file.write_bytes(whole[file])
  print(f'{name}: {outcomes}, {(peak_memory() - peak) / 1e6:.0f} MB')
  assert not wrong, f'{len(wrong)} of {MUTATIONS}: {wrong[:8]}'
  assert sum(outcomes.values()) == MUTATIONS and outcomes['refused'] > MUTATIONS // 10
  assert peak_memory() - peak < MEGABYTES * 1e6
  assert samples.content(tmp_path) == whole
