"""Records of measured runs: make, write and read them; what machine and libraries they are of; what others published.

Also here: `compress`, which moves a published record's samples to a compressed file.
"""

from tdn_bench.records.environment import (
    PACKAGES,
    commit,
    cpu_name,
    describe_machine,
    machine_name,
    machine_text,
    versions,
)
from tdn_bench.records.published import PUBLISHED, Published, published_for
from tdn_bench.records.reading import STATUSES
from tdn_bench.records.record import (
    SCHEMA_VERSION,
    Record,
    check_file,
    check_folder,
    check_name,
    default_folder,
    latest_records,
    make_record,
    part_lines,
    read_record,
    read_records,
    record_folder,
    to_json,
    utc_now,
    write_record,
)

__all__ = [
    "PACKAGES",
    "PUBLISHED",
    "SCHEMA_VERSION",
    "STATUSES",
    "Published",
    "Record",
    "check_file",
    "check_folder",
    "check_name",
    "commit",
    "cpu_name",
    "default_folder",
    "describe_machine",
    "latest_records",
    "machine_name",
    "machine_text",
    "make_record",
    "part_lines",
    "published_for",
    "read_record",
    "read_records",
    "record_folder",
    "to_json",
    "utc_now",
    "versions",
    "write_record",
]
