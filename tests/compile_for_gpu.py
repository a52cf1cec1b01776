"""Compiles tiny steps for a GPU that is not there; a process of its own, since jax must not have started before.

    python -m tests.compile_for_gpu spcl:bfloat16 mae:bfloat16 spcl:float32 spcl:float32:8

A third word is a number of GPUs, which share one train state. Prints a line of JSON each: the name, calls of cuDNN's
fused attention in the compiled program, forward and backward, exchanges as [count, bytes], the bytes of the parameters
that lie in parts, and the error where it does not compile.
"""

import json
import sys

import jax

from cxrjax import initial, methods, parallel, plan, stand_ins
from cxrjax.accelerators import aot, hardware
from cxrjax.step import program
from tests import runs


def compiled(name: str, dtype: str, count: str = "1") -> tuple[str, int]:
    """The optimised program of one training step of a smoke config, and the bytes of its parameters in parts.

    Its initialisation is lowered.
    """
    target = hardware.parse(f"h100:{count}")
    config = initial.of_run(runs.config(name, model__dtype=dtype, batch_size=16, sharding="fsdp"))
    for part in ("text", "similarity"):
        if "dtype" in config.get(part, {}):
            config[part].dtype = dtype
    mesh = parallel.run_mesh(config, aot.devices(target))
    with stand_ins.of(config) as standing_in, aot.answering_for(target):
        method = methods.make(standing_in, 6)
        made = program(standing_in, method, mesh, 6, 40)
        made.init.lower()
        batch = plan.abstract_batch(method, config.batch_size, mesh)
        text = aot.compiled(made.step.lower(made.abstract, batch), target).as_text()
    params = jax.tree.leaves(made.abstract.params)
    return text, sum(4 * leaf.size for leaf in params if not leaf.sharding.is_fully_replicated)


if __name__ == "__main__":
    aot.devices(hardware.parse("h100"))
    for word in sys.argv[1:]:
        said = {"name": word, "error": ""}
        try:
            text, said["in_parts"] = compiled(*word.split(":"))
            said["exchanges"] = aot.collectives(text)
            said["backward"] = text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"')
            said["forward"] = text.count('custom_call_target="__cudnn$fmhaSoftmax"')
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"[:2000]
        print(json.dumps(said), flush=True)
        jax.clear_caches()
