"""What llama.cpp takes on this computer: tokens a second of a GGUF file on one thread, in JSON.

Run by scripts/cpu.py under a Python that has the package xllamacpp, and nothing else.
"""
import importlib.metadata
import json
import sys
import time

import xllamacpp


def main(path: str, prompt: int, generate: int, runs: int) -> None:
    """The best of so many runs, by processor time: others may use this computer too."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = path, 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def seconds(count: int) -> float:
        began = time.process_time()
        done = server.handle_completions({
            # Of ids, so that each model has as many.
            "prompt": [5 + k % 7 for k in range(prompt)], "n_predict": count, "temperature": 0,
            "ignore_eos": True, "cache_prompt": False})
        spent = time.process_time() - began
        timings = (json.loads(done) if isinstance(done, str) else done)["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (prompt, count):
            raise SystemExit(f"it did something else: {timings}")
        return spent
    first, whole = (min(seconds(count) for _ in range(runs)) for count in (1, 1 + generate))
    print(json.dumps({"prompt": prompt / first, "generate": generate / (whole - first),
                      "version": importlib.metadata.version("xllamacpp")}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
