"""A bucket without a cloud: gs://BUCKET/NAME is a file of $CXRJAX_TEST_BUCKETS, for this process and those of `run`.

    python -m tests.bucket --config=… --workdir=gs://…          what cxrjax.main does with it

Like in a bucket, writing makes the folders that it needs. Unlike there, folders stay when they are empty.
"""

import os
import runpy

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Bucket(LocalFileSystem):
    protocol = ("gcs", "gs")

    def __init__(self, **_):
        super().__init__(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        if path.startswith("gs://"):
            path = f"{os.environ['CXRJAX_TEST_BUCKETS']}/{path.removeprefix('gs://')}"
        return super()._strip_protocol(path)


os.environ["EPATH_USE_TF"] = "false"
fsspec.register_implementation("gcs", Bucket, clobber=True)

if __name__ == "__main__":
    runpy.run_module("cxrjax.main", run_name="__main__", alter_sys=True)
