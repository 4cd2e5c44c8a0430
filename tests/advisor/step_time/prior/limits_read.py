"""Which limits vLLM itself takes on the GPUs, by name and bytes of memory, of its argument."""

import json
import sys

from vllm.engine import arg_utils
from vllm.usage.usage_lib import UsageContext


def limits_on(name, size):
    """Return (max_num_seqs, max_num_batched_tokens) of a server and of the class LLM."""

    class Platform:
        get_device_total_memory = staticmethod(lambda: size)
        get_device_name = staticmethod(lambda: name)
        is_tpu = is_cpu = staticmethod(lambda: False)

    arg_utils.current_platform = Platform
    batched, seqs = arg_utils.EngineArgs.get_batch_defaults(1)
    callers = UsageContext.OPENAI_API_SERVER, UsageContext.LLM_CLASS
    return [(seqs[each], batched[each]) for each in callers]


if __name__ == "__main__":
    found = {name: limits_on(name, size) for name, size in json.loads(sys.argv[1]).items()}
    print("READ", json.dumps(found))
