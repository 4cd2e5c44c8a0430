"""What vLLM's own parser reads of the commands that its argument holds."""

import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    parser = make_arg_parser(FlexibleArgumentParser())
    found = [vars(parser.parse_args(words)) for words in given["commands"]]
    names = given["names"]
    print("READ", json.dumps([{name: str(each.get(name)) for name in names} for each in found]))
