"""short-transformers computing its one measure, as a side of a benchmark pair; see `worker`.

Runs with a folder in front of the module path that holds the package and the transformers it works with, so it imports
nothing of this library.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    """Serves one job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from short_transformers import ShortTransformer

    # It loads with AutoModelForCausalLM, in eval mode; its hooks copy every state to the CPU, one sequence at a time.
    model = ShortTransformer.from_pretrained(job["folder"], torch_dtype=getattr(torch, job["dtype"])).to(job["device"])
    input_ids = torch.tensor(job["input_ids"], device=job["device"])

    def run() -> tuple[list, float]:
        started = time.perf_counter()
        with torch.no_grad():
            for row in input_ids:
                model(input_ids=row[None])
        seconds, values = time.perf_counter() - started, model.memory.result.tolist()
        model.clear_memory()
        return values, seconds

    run()  # the first run pays for what later ones find ready
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        values, seconds = run()
        answer = {"seconds": seconds, "head_seconds": 0.0, "peak_bytes": peak_bytes(job["device"]), "values": values}
        print(json.dumps(answer), file=answers)


def peak_bytes(device: str) -> int:
    """The same as `devices.peak_bytes`."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
