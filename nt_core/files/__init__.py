"""Files: written atomically, and read within bounds, because files may come from untrusted sources.

Input: paths, plain values, and arrays. Output: JSON, YAML, and safetensors, or errors that name the file.
This room imports the ground.
"""

from nt_core.files.atomic import (
    atomically,
    clear_temporaries,
    expect_file,
    read_json,
    read_text,
    sync_folder,
    write_atomically,
    write_out,
)
from nt_core.files.parsing import ParseError, parse_json, parse_yaml, to_yaml
from nt_core.files.plain import plain, to_json
from nt_core.files.tensors import (
    INDEX,
    STORED,
    TENSORS,
    StoredTensor,
    expect_dtypes,
    stored_tensors,
    tensors_in,
    write_tensors,
)

__all__ = [
    "INDEX",
    "STORED",
    "TENSORS",
    "ParseError",
    "StoredTensor",
    "atomically",
    "clear_temporaries",
    "expect_dtypes",
    "expect_file",
    "parse_json",
    "parse_yaml",
    "plain",
    "read_json",
    "read_text",
    "stored_tensors",
    "sync_folder",
    "tensors_in",
    "to_json",
    "to_yaml",
    "write_atomically",
    "write_out",
    "write_tensors",
]
