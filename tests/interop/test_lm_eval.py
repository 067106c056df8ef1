"""redraft models in the lm-evaluation-harness: its own evaluator on a task defined here, without network access."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset

pytest.importorskip("lm_eval")

FAMILIES = [{"name": "autoregressive", "prompt_encoder": False}, {"name": "masked", "length_head": False}]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: str(family["name"]))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp("lm") / "m")


def saved(family: dict[str, Any], path: Path) -> Path:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size, dim=32, max_length=64), False)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.save(path)
    return path


def request_of(*arguments: Any) -> Any:
    return [SimpleNamespace(args=one) for one in arguments]


def make(folder: Path, **more: Any) -> Any:
    from redraft.interop.lm_eval import RedraftLM

    return RedraftLM(str(folder), "cpu", max_gen_toks=8, samples=16, **more)


REQUESTS = [("The cat", " sat"), ("A ", "dog"), ("", "bird"), ("It was a long day, so we", " went home at last")]


def test_results_do_not_depend_on_the_batch_size(folder: Path) -> None:
    together, alone = make(folder, batch_size=4), make(folder, batch_size=1)
    for one, other in zip(
        together.loglikelihood(request_of(*REQUESTS)), alone.loglikelihood(request_of(*REQUESTS)), strict=True
    ):
        assert one[0] == pytest.approx(other[0], abs=1e-4) and one[1] == other[1]
    texts = [(context, {"until": ["\n"], "max_gen_toks": 6}) for context, _ in REQUESTS]
    assert together.generate_until(request_of(*texts)) == alone.generate_until(request_of(*texts))


def test_log_likelihoods_equal_those_of_the_model(folder: Path) -> None:
    lm = make(folder)
    if lm.model.spec.family.schedule is not None:
        pytest.skip("an estimate")
    [(found, greedy)] = lm.loglikelihood(request_of(("ab", "cd")))
    tokenizer = lm.model.tokenizer
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("abcd")]])
    logits = lm.model.logits(ids)[0].index_fill(1, torch.tensor(lm.model.spec.tokens.forbidden), -math.inf)
    log_p = logits.log_softmax(-1)
    assert found == pytest.approx(float(log_p[2, ids[0, 3]] + log_p[3, ids[0, 4]]), abs=1e-4)
    assert greedy == bool((logits[2:4].argmax(-1) == ids[0, 3:5]).all())
    [rolled] = lm.loglikelihood_rolling(request_of(("abcd",)))
    assert rolled == pytest.approx(float(log_p[:4].gather(1, ids[0, 1:, None]).sum()), abs=1e-4)


def test_texts_end_at_the_stop_strings_of_the_task(folder: Path) -> None:
    lm = make(folder)
    [whole] = lm.generate_until(request_of(("ab", {"until": []})))
    stop = whole[len(whole) // 2 :][:1]
    [cut] = lm.generate_until(request_of(("ab", {"until": [stop], "do_sample": False})))
    assert whole.startswith(cut) and stop not in cut
    with pytest.raises(UserError, match="beam_width"):
        lm.generate_until(request_of(("ab", {"until": [], "beam_width": 3})))


def test_a_misspelled_setting_is_an_error_at_once(folder: Path) -> None:
    with pytest.raises(UserError, match="stepz"):
        make(folder, stepz=3)


def test_chat_prompts_use_the_template_of_the_folder(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    template = "{% for m in messages %}<sep>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    template += "{% if add_generation_prompt %}<sep>assistant:{% endif %}"
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    lm, plain = make(tmp_path / "m"), make(folder)
    asking = [{"role": "user", "content": "2 + 2"}]
    assert lm.chat_template(True) == template and lm.chat_template(False) is None and plain.chat_template(True) == ""
    text = lm.apply_chat_template(asking)
    assert text == "<sep>user: 2 + 2<eos><sep>assistant:"
    begun = [*asking, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "<sep>user: 2 + 2<eos><sep>assistant: It is"
    head, tail = lm._split(text, " 4")
    tokenizer = lm.model.tokenizer
    assert head.count(tokenizer.sep_id) == 2 and head.count(tokenizer.eos_id) == 1
    assert tail == tokenizer.encode(" 4")
    assert plain.apply_chat_template(begun, add_generation_prompt=False) == "User: 2 + 2\nAssistant: It is"
    assert lm.tokenizer_name == make(tmp_path / "m").tokenizer_name != plain.tokenizer_name


def test_without_the_harness_the_error_names_the_package() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import runpy; "
    code += "runpy.run_module('redraft.interop.lm_eval', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2 and "pip install 'redraft[harness]'" in run.stderr and "Traceback" not in run.stderr


def test_by_the_command_of_the_harness(tmp_path: Path) -> None:
    """The ``lm_eval`` command, which imports our class from the task; its results record the settings."""
    root = Path(__file__).parents[2]
    made = f"pretrained={saved(FAMILIES[1], tmp_path / 'm')},steps=4,temperature=0.0"
    words = [
        "--model",
        "redraft",
        "--model_args",
        made,
        "--device",
        "cpu",
        "--tasks",
        "examples/lm_eval/translation.yaml",
        "--limit",
        "2",
    ]
    env = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, "--output_path", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        cwd=root,
        env=env,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    [written] = tmp_path.glob("out*.json")
    found = json.loads(written.read_text())
    assert 0 <= found["results"]["redraft_translation"]["chrf,none"] <= 100
    assert found["config"]["generation_settings"]["steps"] == 4


def test_through_the_harness(folder: Path, tmp_path: Path) -> None:
    """A task from a file, its metrics, and the recorded settings."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": "2 + 2 =", "choices": ["4", "5"], "answer": 0},
        {"question": "a b", "choices": ["c", "z"], "answer": 0},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: redraft_sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: acc}]\n"
    )
    lm = make(folder, temperature=0.0)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=["redraft_sums"], task_manager=TaskManager(include_path=str(tmp_path)), bootstrap_iters=0
    )
    assert 0 <= found["results"]["redraft_sums"]["acc,none"] <= 1
    info = lm.get_model_info()
    assert info["sampler"] in ("autoregressive", "confidence") and "temperature" in info["generation_settings"]
