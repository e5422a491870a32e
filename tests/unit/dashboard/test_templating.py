from autoopt_pipeline.dashboard.templating import _environment


def test_runs_in_sentences_have_their_short_name() -> None:
    template = _environment().from_string("{{ text | with_short_names }}")
    run = "e348147c-4e60-44d6-8300-4effa145bcc1"
    assert template.render(text=f"run {run} is under way, trace {run} is none") == (
        f'run <span class="version" title="{run}">e348147c</span> is under way, trace {run} is none'
    )


def test_versions_in_sentences_have_their_short_name_and_the_rest_stays_text() -> None:
    template = _environment().from_string("{{ text | with_short_names }}")
    text = "<b>20261127T142756Z-fb253475</b> serves, 20261127T142756Z-fb25347x does not"
    assert template.render(text=text) == (
        '&lt;b&gt;<span class="version" title="20261127T142756Z-fb253475">fb253475</span>&lt;/b&gt; serves, '
        "20261127T142756Z-fb25347x does not"
    )
