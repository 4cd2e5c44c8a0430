"""A fault of vLLM's CPU build under speculation, found by trying it out, and its mend.

`expand_batch_to_tokens` (vLLM 0.32, `v1/sample/rejection_sampler.py`) spreads each request's
temperature, top-p and top-k over its drafted tokens. On a CPU it calls `_expand_kernel_impl`
(`utils/cpu_triton_utils.py`), which writes into an int64 copy of the result and forgets the copy:
logits are then divided by whatever the memory held. Greedy decoding never comes there.
"""

from __future__ import annotations

from typing import Any

MENDED = (
    "vLLM's CPU build loses the temperature under speculation (expand_batch_to_tokens leaves its "
    "result unset), which is corrected in this process, not in a server"
)
BROKEN = (
    "this vLLM's CPU build loses the temperature under speculation and cannot be corrected here: "
    "samples at a temperature above 0 are garbage"
)


def mend_cpu_sampler() -> str | None:
    """Mend the fault where it is; returns a line that says so, None where there was none."""
    try:
        from vllm.v1.sample import rejection_sampler
    except ImportError:
        return None
    if _is_right(getattr(rejection_sampler, "expand_batch_to_tokens", None)):
        return None
    if not hasattr(rejection_sampler, "expand_batch_to_tokens"):
        return BROKEN
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
    return MENDED


def _is_right(expand: Any) -> bool:
    """Whether the function spreads two temperatures over three tokens as it should."""
    import torch

    try:
        spread = expand(torch.tensor([0.75, 0.0]), torch.tensor([2, 3], dtype=torch.int32), 3, 0, 1)
        return bool(torch.equal(spread, torch.tensor([0.75, 0.75, 1.0])))
    except Exception:
        return False


def expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Any:
    """Return each request's value once per token of it, shape (num_tokens,), as vLLM means it.

    `x` has shape (requests,), `cu_num_tokens` holds the running sum of tokens per request; values
    equal to `replace_from` become `replace_to`.
    """
    import torch

    counts = torch.diff(cu_num_tokens.to(torch.int64), prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return torch.repeat_interleave(replaced, counts, output_size=num_tokens)
