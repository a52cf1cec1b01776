"""Pre-training from Python."""

import cxrjax
from cxrjax import checks, encoder, main


def test_without_judges_no_step_is_kept_as_their_best(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(main, "fit", lambda config, *rest: trained.append(config))
    monkeypatch.setattr(encoder, "load", lambda folder: folder)
    assert cxrjax.pretrain("supervised:smoke", judge=False, workdir=tmp_path / "run") == tmp_path / "run"
    checks.judge_keys(trained[0])
    assert not trained[0].evals and trained[0].duration.total_steps == 6
