"""Every kind of finding has a cause and a next step, the same ones as the documentation."""

import logging
import pathlib
import re

import pytest

from prompt_tuning.diagnosis import findings
from prompt_tuning.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / 'docs' / 'troubleshooting.md'


def sections():
  """{heading: text on one line} of the documentation."""
  parts = re.split(r'^### (.+)$', DOCS.read_text(), flags=re.MULTILINE)
  return {heading: ' '.join(text.split()) for heading, text in zip(parts[1::2], parts[2::2],
                                                                   strict=True)}


@pytest.mark.parametrize('topic', findings.ADVICE)
def test_the_documentation_says_the_same(topic):
  cause, next_step = findings.ADVICE[topic]
  text = sections()[topic].replace('`', '')
  assert cause.replace('`', '') in text
  assert next_step.replace('`', '') in text


def test_the_documentation_has_no_other_topics():
  assert list(sections()) == list(findings.ADVICE)


def test_every_topic_is_used_and_every_used_topic_is_there():
  source = ''.join(path.read_text() for path in (ROOT / 'prompt_tuning/diagnosis').glob('*.py')
                   if path.name != 'findings.py')
  source += (ROOT / 'prompt_tuning/diagnosis/findings.py').read_text().split('class Finding')[1]
  source = source.replace("f'{feature} are cut'", "'inputs are cut' 'targets are cut'")
  for topic in findings.ADVICE:
    assert f"'{topic}'" in source, topic


def test_text_of_a_finding():
  problem = findings.problem('learning rate', 'It is 0.')
  assert str(problem).startswith('learning rate: It is 0. Cause: The rate is 0')
  assert 'Next: Raise LEARNING_RATE' in str(problem)
  assert str(findings.note('class balance', 'Even.')) == 'class balance: Even.'
  assert findings.refused(UserError('no file x')).found == 'no file x'


def test_log_levels(caplog):
  with caplog.at_level(logging.INFO):
    findings.log_all([findings.note('class balance', 'a'), findings.warning('gradient', 'b')],
                     logging.getLogger('test'))
  assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
  assert caplog.records[1].message.startswith('Warning: gradient: b Cause:')


@pytest.mark.parametrize(('part', 'whole', 'text'), [
    (1, 2, '50.0 %'), (0, 3, '0.0 %'), (1, 3000, '0.033 %'), (0, 0, '0.0 %')])
def test_percent(part, whole, text):
  assert findings.percent(part, whole) == text
