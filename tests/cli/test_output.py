from moeworks.cli.output import console, facts, grid


def test_tables_are_not_squeezed_into_a_pipe(capsys):
    out = console()
    out.print(facts("Title", [("name", "12 GB", "x" * 100)]))
    out.print(grid("Other", ["a", "b"], [["row", "7"]]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["Title", "name  12 GB  " + "x" * 100]
    assert [line.split() for line in lines[2:]] == [["Other"], ["a", "b"], ["row", "7"]]
