"""Tables as text."""

from locore.report import tables


def test_columns_that_only_some_rows_have_stand_where_they_do():
    table = [{"": "a", "x": "1", "z": "2", "w": "3"}, {"": "b", "x": "4", "y": "5", "z": "6"}, {"": "c"}]
    lines = tables.csv_text({"all": table}).splitlines()
    assert lines == ["protocol,,x,y,z,w", "all,a,1,,2,3", "all,b,4,5,6,", "all,c,,,,"]
    assert tables.markdown(table).splitlines()[2:] == [
        "| a | 1 |  | 2 | 3 |",
        "| b | 4 | 5 | 6 |  |",
        "| c |  |  |  |  |",
    ]
