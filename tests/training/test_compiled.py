"""What happens where torch.compile does not work."""

import pytest
import torch

from lib.training.compiled import Compiled


def double(x):
    return 2 * x


def test_without_it_functions_are_as_written():
    assert Compiled(double, "double", False)(torch.ones(2)).tolist() == [2.0, 2.0]


def test_a_failing_compiler_is_told_once_and_done_without(monkeypatch, capsys):
    tried = []

    def broken(function):
        def call(*arguments):
            tried.append(arguments)
            raise RuntimeError("no C++ compiler\nmore of it")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    function = Compiled(double, "double", True)
    assert [float(function(torch.tensor(value))) for value in (1.0, 2.0)] == [2.0, 4.0]
    assert len(tried) == 1
    said = capsys.readouterr().out
    assert "torch.compile does not work here (RuntimeError: no C++ compiler)" in said
    assert "trainer.compile=False" in said


def test_too_little_memory_is_no_failure_of_the_compiler(monkeypatch, capsys):
    def full(function):
        def call(*arguments):
            raise torch.OutOfMemoryError("out of memory")

        return call

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(double, "double", True)(torch.ones(1))
    assert not capsys.readouterr().out


def test_errors_of_the_function_itself_are_its_own(capsys):
    def wrong(x):
        raise ValueError("of the function")

    with pytest.raises(ValueError, match="of the function"):
        Compiled(wrong, "wrong", False)(torch.ones(1))
    assert not capsys.readouterr().out
