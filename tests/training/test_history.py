from partialseg.training.history import Progress


def test_rows_of_terms_from_before_there_were_organs_are_of_all_of_them(tmp_path):
    row, with_organ = ["all data", 1, "btcv", "mDC", 0.5], ["all data", 2, "btcv", "liver", "mDC", 0.4]
    progress = Progress(terms=[row, with_organ])
    assert progress.terms == [["all data", 1, "btcv", "all", "mDC", 0.5], with_organ]
    progress.write_tables(tmp_path)
    assert (tmp_path / "terms.csv").read_text().splitlines()[1] == "all data,1,btcv,all,mDC,0.5"
