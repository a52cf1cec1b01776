import os
import signal

from cxrjax.runtime import interruption


def test_the_first_ctrl_c_asks_and_the_second_ends(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGINT)
    with interruption.caught() as found:
        assert not found.asked and found.name == "a signal on another host" and found.code == 143
        os.kill(os.getpid(), signal.SIGINT)
        assert found.asked and found.name == "Ctrl-C" and found.code == 130 and not ended
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.name == "SIGTERM" and found.code == 143
    assert signal.getsignal(signal.SIGINT) is before
    assert "once more stops it at once" in capfd.readouterr().err
