"""The command lines: the one owner of every command's flags, each a `parse...` here that raises ConfigError on a mistake."""

from jaxcls.flags.benchmarks import parse_benchmark
from jaxcls.flags.config_file import load_config
from jaxcls.flags.data import parse_prepare
from jaxcls.flags.reports import parse_report
from jaxcls.flags.runs import Args, parse, parse_doctor, parse_replay, parse_verify_resume
from jaxcls.flags.weights import NAMES, parse_classify, parse_compare, parse_convert, parse_summary

__all__ = [
    "NAMES",
    "Args",
    "load_config",
    "parse",
    "parse_benchmark",
    "parse_classify",
    "parse_compare",
    "parse_convert",
    "parse_doctor",
    "parse_prepare",
    "parse_replay",
    "parse_report",
    "parse_summary",
    "parse_verify_resume",
]
