"""A replica that serves a model: a vLLM async engine and its tokenizer. What crosses Ray: Question, Answer."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

from tenet.engines import _choices, _model, _watchdog
from tenet.engines._actor import Actor
from tenet.engines._prompt import Fault, Prompts

Draw = tuple[float, float, int, tuple[str, ...], int | None]
"""(temperature, top_p, max_tokens, stop, seed)"""
Question = tuple[int, tuple[tuple[str, str], ...], str | None, Draw, tuple[str, ...]]
"""(number, messages, text, how to draw, choices)"""
Answer = tuple[int, str, str, tuple[float, ...], tuple[int, int, int], str | None, str]
"""(number, text, finish, log-probabilities, (prompt, completion, cached tokens), fault, detail)"""

_ASKED = 128
"""vLLM scores at most so many named tokens in one call."""
_LOOK = 5.0
"""Seconds between two looks at whether vLLM's engine process answers."""


class Replica(Actor):
    """One engine."""

    answered = False
    """Whether what it is asked about ends with the assistant's turn."""

    def __init__(self, plan: dict[str, Any]) -> None:
        mark = f"{os.getpid()}-{uuid.uuid4().hex}"
        # vLLM gives its processes titles, and setproctitle would write those over the environment that
        # the watchdog reads the mark from
        os.environ |= {**plan["env"], _watchdog.MARK: mark, "SPT_NOENV": "1"}
        # Ray sets it to the actor's share of CPUs; vLLM sets its own for its workers
        os.environ.pop("OMP_NUM_THREADS", None)
        _watchdog.guard(mark)
        super().__init__(plan)
        self._calls = 0
        self._cores, self._alone = "", True
        self._watch: asyncio.Task[None] | None = None
        self._reloading = False

    async def start(self, share: tuple[int, int]) -> int:
        """Loads the model, as the i-th of n replicas on its node; returns the context length."""
        plan = self._plan
        if plan["cpu"]:
            self._cores = cores(share, plan["threads"], plan["args"]["tensor_parallel_size"])
            self._alone = share[1] == 1
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = self._cores
        try:
            self._load()
        except Exception as error:
            told = f"{type(error).__name__}: {error}{_last_error()}{_absent(plan['args'].get('model', ''))}"
            raise RuntimeError(told[:2000]) from None
        if plan.get("hang_s"):
            self._watch = asyncio.create_task(self._look(plan["hang_s"]))
        return self._limit

    async def _look(self, patience: float) -> None:
        """Asks the engine process for a sign of life, again and again: one that hangs never ends a call.

        It answers between two steps of the model, so the patience must be longer than a step.
        """
        while not self._dead:
            await asyncio.sleep(_LOOK)
            try:
                await asyncio.wait_for(self._engine.is_sleeping(), patience)
            except TimeoutError:
                if self._reloading:
                    continue
                self._die(f"vLLM's engine process gave no sign of life for {patience:g} s")
            except self._death as error:
                self._die(f"vLLM's engine process ended: {error}"[:500])

    def _load(self) -> None:
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        args: dict[str, Any] = dict(self._plan["args"])
        lora = self._plan["lora"]
        if self._plan["cpu"] and args["dtype"] == "auto" and _model.slow_bf16():
            args["dtype"] = "float32"
        self._input: Any = tokens_input
        self._params: Any = SamplingParams
        self._death = EngineDeadError
        self._final = RequestOutputKind.FINAL_ONLY
        # batch sizes of vLLM's offline use: throughput counts here, not the first token's delay
        with _threads(self._cores, self._alone) if args["distributed_executor_backend"] == "uni" else nullcontext():
            self._engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**args), usage_context=UsageContext.LLM_CLASS)
        self._limit = int(self._engine.model_config.max_model_len)
        self._lora = LoRARequest("adapter", 1, lora) if lora else None
        auto: Any = importlib.import_module("transformers").AutoTokenizer
        at = {"revision": args["revision"], "trust_remote_code": False}
        self._prompts = Prompts(auto.from_pretrained(args["model"], **at))

    async def stop(self) -> None:
        """Ends vLLM's processes."""
        if self._watch:
            self._watch.cancel()
        self._engine.shutdown()

    async def reload(self, folder: str) -> None:
        """Serves the weights of a folder from here on; nothing computed with the old ones is kept."""
        self._reloading = True
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        finally:
            self._reloading = False
        if not await self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM keeps prefixes that the old weights computed: calls are under way")

    def _fault(self, error: Exception) -> tuple[Any, ...] | None:
        if isinstance(error, self._death):
            self._die(f"vLLM's engine process ended: {error}"[:500])
            return None
        if isinstance(error, ValueError | TypeError):
            return "refused", f"vLLM refuses the question: {error}"[:500]
        return super()._fault(error)

    async def _answer(self, asked: tuple[Any, ...]) -> tuple[Any, ...]:
        messages, text, draw, choices = asked
        rendered, ids = self._prompts.render(messages, text, self.answered)
        if not ids:
            raise Fault("refused", "nothing is asked: neither messages nor text")
        self._fit(len(ids) + 1)
        if choices:
            return await self._score(ids, self._prompts.paths(rendered, choices))
        return await self._draw(ids, draw)

    def _fit(self, tokens: int) -> None:
        if tokens > self._limit:
            told = f"prompt and answer need {tokens} tokens or more; the context has {self._limit}"
            raise Fault("context_length", told)

    async def _ask(self, ids: list[int], **params: Any) -> Any:
        self._calls += 1
        # skip_clone: the parameters serve this call alone, and vLLM's deep copy of them is slow
        how = self._params(output_kind=self._final, skip_clone=True, **params)
        out: Any = None
        stream = self._engine.generate(self._input(ids), how, str(self._calls), lora_request=self._lora)
        async for part in stream:
            out = part
        finish = out and out.outputs[0].finish_reason
        if finish not in ("stop", "length"):
            raise Fault("server", f"vLLM ended the call early: {finish}")
        return out

    async def _draw(self, ids: list[int], draw: Draw) -> tuple[Any, ...]:
        temperature, top_p, most, stop, seed = draw
        # without stop strings the text is decoded once, at the end, and not token by token
        out = await self._ask(
            ids,
            temperature=temperature,
            top_p=top_p if temperature > 0 else 1.0,
            max_tokens=min(most, self._limit - len(ids)),
            seed=seed,
            stop=list(stop),
            detokenize=bool(stop),
        )
        drawn = out.outputs[0]
        tokens = list(drawn.token_ids)
        kept = tokens[:-1] if drawn.finish_reason == "stop" else tokens
        text = drawn.text if stop else self._prompts.decode(kept)
        return text, drawn.finish_reason, (), (len(ids), len(tokens), out.num_cached_tokens or 0)

    async def _score(self, ids: list[int], paths: list[_choices.Path]) -> tuple[Any, ...]:
        self._fit(len(ids) + max(map(len, paths)))
        calls = [
            (node, following[i : i + _ASKED])
            for node, following in _choices.branches(paths).items()
            for i in range(0, len(following), _ASKED)
        ]
        one = {"temperature": 0.0, "max_tokens": 1, "detokenize": False}
        outs = await asyncio.gather(
            *(self._ask([*ids, *node], logprob_token_ids=asked, **one) for node, asked in calls)
        )
        found: dict[tuple[_choices.Path, int], float] = {}
        prompt = cached = 0
        for (node, asked), out in zip(calls, outs, strict=True):
            told = out.outputs[0].logprobs[0]
            found |= {(node, token): told[token].logprob for token in asked}
            prompt, cached = prompt + len(ids) + len(node), cached + (out.num_cached_tokens or 0)
        scores = tuple(sum(found[path[:i], t] for i, t in enumerate(path)) for path in paths)
        return "", "stop", scores, (prompt, len(calls), cached)


def cores(share: tuple[int, int], threads: int | None, ranks: int) -> str:
    """The cores of the i-th of n replicas on a machine, as vLLM writes them: a list per rank.

    Shares are disjoint while there are cores enough. Each rank leaves one of its share to vLLM's
    scheduler, which waits by spinning: on two cores, a second thread makes small models slower.
    """
    index, of = share
    mine = sorted(os.sched_getaffinity(0))
    parts = of * ranks
    lists: list[str] = []
    for part in range(index * ranks, (index + 1) * ranks):
        own = mine[part * len(mine) // parts : (part + 1) * len(mine) // parts]
        own = own or [mine[part % len(mine)]]
        own = own[: threads or max(1, len(own) - 1)]
        lists.append(",".join(map(str, own)))
    return "|".join(lists)


@contextmanager
def _threads(own: str, alone: bool) -> Generator[None]:
    """Where the model runs in vLLM's engine process, that process starts with as many OpenMP threads as it has cores.

    vLLM sees to that for the workers it starts. Only replicas that share a machine are bound to their cores: the first
    core is the first of every driver's, and what is bound there cannot make way for another's. OpenMP reads the
    variables once, so they do not reach this process.
    """
    said = {"OMP_NUM_THREADS": str(own.count(",") + 1)}
    if not alone:
        said |= {"OMP_PLACES": f"{{{own}}}", "OMP_PROC_BIND": "true"}
    os.environ |= said
    yield
    for name in said:
        del os.environ[name]


def _absent(model: str) -> str:
    """A hint, where a model's folder is not on this machine."""
    if not model.startswith("/") or os.path.isdir(model):
        return ""
    return f" (there is no {model} on {os.uname().nodename}: every node must see the weights under the same path)"


def _last_error() -> str:
    """The last error that this process or its children logged: vLLM's own says only "see above"."""
    try:
        with open(os.readlink("/proc/self/fd/2"), "rb") as log:
            log.seek(max(0, log.seek(0, 2) - 200_000))
            lines = re.findall(r"\b\w+Error: .+", log.read().decode("utf-8", "replace"))
    except OSError:
        return ""
    told = [line for line in lines if "root cause" not in line and "stack trace" not in line]
    return f" ({told[-1]})" if told else ""
