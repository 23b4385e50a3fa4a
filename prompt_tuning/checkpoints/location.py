"""Where a checkpoint lies: a local folder, or a folder in a Google Cloud Storage bucket.

The one place that knows the difference. Local files are looked at directly; a bucket is reached
through tensorstore's gcs driver alone, so that no other client library is needed.
"""

import dataclasses
import io
import os
import pathlib
import re
from typing import BinaryIO

from prompt_tuning.errors import UserError

# A path that went through pathlib has one slash left of two.
_GCS = re.compile(r'gs:/{1,2}([^/]+)/?(.*)', re.DOTALL)
_FILE = re.compile(r'file:/+')
# Listing is the first question to a bucket; by default tensorstore asks for a quarter of an hour.
_FEW_RETRIES = {'gcs_request_retries': {'max_retries': 5, 'max_delay': '4s'}}


@dataclasses.dataclass(frozen=True)
class Location:
  """A folder or a file.

  Attributes:
    path: a local path, or the name inside the bucket, without a slash at its end.
    bucket: of Google Cloud Storage; None is this machine.
  """

  path: str
  bucket: str | None = None

  def __str__(self):
    return self.path if self.bucket is None else f'gs://{self.bucket}/{self.path}'

  @property
  def local(self) -> pathlib.Path:
    """The path on this machine; only where there is no bucket."""
    return pathlib.Path(self.path)

  @property
  def name(self) -> str:
    """The last component."""
    return (self.local.resolve() if self.bucket is None else pathlib.PurePosixPath(self.path)).name

  @property
  def parent(self) -> 'Location':
    """The folder it lies in."""
    if self.bucket is None:
      return Location(str(self.local.resolve().parent))
    return dataclasses.replace(self, path=self.path.rpartition('/')[0])

  def child(self, name: str) -> 'Location':
    """What is called `name` in this folder; `name` may have several components."""
    name = name.strip('/')
    return dataclasses.replace(self, path=f'{self.path}/{name}' if self.path else name)

  def inside(self, relative: str) -> 'Location':
    """A path that a file of this folder names.

    Raises:
      ValueError: it leads out of this folder, by its components or by a link.
    """
    pure = pathlib.PurePosixPath(relative)
    if pure.is_absolute() or '..' in pure.parts or not pure.parts or '\0' in relative:
      raise ValueError(f'the path {relative!r} leaves the checkpoint folder')
    found = self.child(str(pure))
    if self.bucket is None and not found.local.resolve().is_relative_to(self.local.resolve()):
      raise ValueError(f'the path {relative!r} is a link out of the checkpoint folder')
    return found

  def kvstore(self) -> dict:
    """tensorstore's specification of this folder."""
    if self.bucket is None:
      return {'driver': 'file', 'path': f'{self.local.resolve()}/'}
    return {'driver': 'gcs', 'bucket': self.bucket, 'path': f'{self.path}/' if self.path else ''}

  def holds(self, name: str) -> bool:
    """Whether a file of this name lies directly in this folder."""
    if self.bucket is None:
      return self.child(name).local.is_file()
    return bool(list_keys(self.kvstore(), str(self), name, f'{name}\0'))

  def folders(self) -> list[str]:
    """Names of the folders in this folder; none where there is no such folder."""
    if self.bucket is None:
      return [p.name for p in self.local.iterdir() if p.is_dir()] if self.local.is_dir() else []
    # A bucket has no folders, only names: all of them are listed, a thousand a request.
    names = list_keys(self.kvstore(), str(self))
    return sorted({name.partition('/')[0] for name in names if '/' in name})

  def open(self, name: str) -> BinaryIO:
    """A file of this folder, for reading; that of a bucket is in memory as a whole.

    Raises:
      OSError: it cannot be read.
      ValueError: it is a link out of this folder.
    """
    if self.bucket is None:
      return self.inside(name).local.open('rb')
    import tensorstore as ts
    try:
      found = ts.KvStore.open(self.kvstore()).result().read(name).result()
    except Exception as error:  # tensorstore's errors have no common class
      raise OSError(f'{self.child(name)}: {error}') from error
    if found.state != 'value':
      raise OSError(f'{self.child(name)} does not exist')
    return io.BytesIO(found.value)


def locate(path) -> Location:
  """The location that a user's path means.

  Args:
    path: local, `file://...` or `gs://bucket/...`; str or os.PathLike.

  Raises:
    UserError: a bucket of another service.
  """
  text = path if isinstance(path, str) else os.fspath(path)
  if found := _GCS.fullmatch(text):
    return Location(found.group(2).rstrip('/'), found.group(1))
  if re.match(r'(s3|az|abfss?|https?|hdfs):/', text):
    raise UserError(f'{text} cannot be opened: a checkpoint is read from a local folder or from '
                    'gs://bucket/...; copy it first.')
  return Location(_FILE.sub('/', text, count=1) if _FILE.match(text) else text)


def list_keys(kvstore: dict, source: str, first: str = '', end: str = '') -> list[str]:
  """Names in a key-value store, '/'-joined and relative to it.

  Args:
    kvstore: tensorstore's specification.
    source: what to call it in messages.
    first: only names from this one on.
    end: only names before this one; '' is no bound.

  Raises:
    UserError: it cannot be listed.
  """
  import tensorstore as ts
  try:
    store = ts.KvStore.open(kvstore, context=ts.Context(_FEW_RETRIES)).result()
    return sorted(key.decode() for key in store.list(ts.KvStore.KeyRange(first, end)).result())
  except Exception as error:  # tensorstore's errors have no common class
    remedy = '. Check name, network and credentials.' if source.startswith('gs:') else ''
    raise UserError(f'Cannot list {source}: {error}{remedy}') from error
