"""What a compiled program does, read from its text: matrix products and collectives.

XLA's own cost analysis counts the body of a loop once, however often it runs, so that a step with
scanned layers seems 24 times cheaper than it is. Here every computation is counted as often as it
is called; loops with the trip count that XLA writes beside them.
"""

import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%(\S+) \(.*\{$')
_INSTRUCTION = re.compile(r'^  (?:ROOT )?%(?P<name>\S+) = (?P<shape>.*?) (?P<kind>[a-z][\w-]*)\('
                          r'(?P<operands>[^()]*)')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition)=%([^\s,)}]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_BITS = re.compile(r'\d+')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """All collectives of one kind: how often they run, and the bytes of their results."""

  count: int = 0
  size_bytes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What one device does in one run of a program.

  Attributes:
    matmul_flops: of all matrix products; a multiplication and an addition are two.
    collectives: {kind: Collective}.
    unknown_loops: loops without a trip count, counted once.
  """

  matmul_flops: int
  collectives: dict[str, Collective]
  unknown_loops: int


def analyse(text: str) -> Program:
  """Reads the text of a compiled program (`compiled.as_text()`)."""
  computations, entry = _computations(text)
  times, unknown = _times(computations, entry)
  flops, collectives = 0, collections.defaultdict(Collective)
  for name, instructions in computations.items():
    shapes = {i['name']: i['shape'] for i in instructions}
    for instruction in instructions:
      kind = instruction['kind'].removesuffix('-start')
      if kind == 'dot':
        flops += times[name] * _dot_flops(instruction, shapes)
      elif kind in COLLECTIVES:
        old = collectives[kind]
        collectives[kind] = Collective(
            count=old.count + times[name],
            size_bytes=old.size_bytes + times[name] * _size_bytes(instruction))
  return Program(matmul_flops=flops, collectives=dict(sorted(collectives.items())),
                 unknown_loops=unknown)


def _computations(text):
  """({name: its instructions}, name of the entry)."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found[2], [])
      entry = found[2] if found[1] else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append({**found.groupdict(), 'line': line})
  return computations, entry


def _times(computations, entry):
  """(how often each computation runs, loops without a trip count).

  The text has what is called before what calls it, so one walk from the end sees all callers first.
  """
  times, unknown = collections.Counter({entry: 1}), 0
  for name in reversed(computations):
    for instruction in computations[name]:
      line, repeat = instruction['line'], 1
      if instruction['kind'] == 'while':
        trips = _TRIPS.search(line)
        repeat, unknown = (int(trips[1]), unknown) if trips else (1, unknown + 1)
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [branch.strip(' %') for branch in branches.split(',')]
      for callee in called:
        times[callee] += repeat * times[name]
  return times, unknown


def _dot_flops(instruction, shapes):
  """Twice the result's entries times the entries that are summed over."""
  left = shapes[instruction['operands'].split(',')[0].strip(' %')]
  dims = _dims(left)
  contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction['line'])[1]
  summed = math.prod(dims[int(i)] for i in contracted.split(',') if i)
  return 2 * math.prod(_dims(instruction['shape'])) * summed


def _dims(shape):
  return [int(size) for size in _ARRAY.search(shape)[2].split(',') if size]


def _size_bytes(instruction):
  """Bytes of the result; of an asynchronous start, whose result holds its operand too, the last."""
  arrays = _ARRAY.findall(instruction['shape'])
  if instruction['kind'].endswith('-start'):
    arrays = arrays[-1:]
  return sum(_itemsize(dtype) * math.prod(int(n) for n in dims.split(',') if n)
             for dtype, dims in arrays)


def _itemsize(dtype):
  bits = _BITS.search(dtype)
  return max(int(bits[0]) // 8, 1) if bits else 1
