"""`prompt-tuning data check --plot`: histograms of lengths and bars of targets, a row a split."""

import logging
from collections.abc import Mapping

import numpy as np

from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.data.statistics import SplitStatistics
from prompt_tuning.data.tokenizing import FEATURES
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

_BINS = 40
_BARS = 10
_SIZE = (4.0, 2.4)  # of one panel, in inches


def write(path: str, splits: Mapping[str, SplitStatistics], limits: Mapping[str, int | None]):
  """Writes a PNG.

  Args:
    path: the file.
    splits: title of a row -> what there is in the split.
    limits: TASK_FEATURE_LENGTHS, drawn as lines where they are known.

  Raises:
    UserError: matplotlib is not installed, or the file cannot be written.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise UserError(f'--plot draws with matplotlib, which cannot be imported: {error}. Install it '
                    "with pip install 'prompt-tuning[plot]', or leave --plot out.") from None
  figure = Figure(figsize=(3 * _SIZE[0], len(splits) * _SIZE[1]), layout='constrained')
  panels = figure.subplots(len(splits), 3, squeeze=False)
  for row, (title, split) in zip(panels, splits.items(), strict=True):
    for i, feature in enumerate(FEATURES):
      _lengths(row[i], split.lengths[:, i], limits.get(feature))
      row[i].set_xlabel(f'{feature}, {split.unit}')
    row[0].set_ylabel('examples')
    row[0].set_title(f'{title}: {len(split):,}', loc='left', fontsize='medium')
    _targets(row[2], split)
  write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=120))
  log.info('%s: lengths and targets of %d splits.', path, len(splits))


def _lengths(panel, lengths: np.ndarray, limit: int | None):
  values, counts = np.unique(lengths, return_counts=True)
  if len(values) > _BINS:
    panel.hist(lengths, bins=_BINS)
  else:
    panel.bar(values, counts, width=0.8)
  if limit is not None and len(lengths) and limit <= 2 * lengths.max():
    panel.axvline(limit, color='tab:red', linestyle='--', label=f'limit {limit}')
    panel.legend(fontsize='small')


def _targets(panel, split: SplitStatistics):
  most = split.targets.most_common(_BARS)[::-1]
  names = [text if len(text) <= 20 else f'{text[:19]}…' for text, _ in most]
  panel.barh(range(len(most)), [count for _, count in most])
  panel.set_yticks(range(len(most)), [name.replace('$', r'\$') for name in names])
  panel.set_xlabel('examples with this target')
