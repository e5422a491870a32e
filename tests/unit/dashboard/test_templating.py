from autoopt_pipeline.dashboard.templating import _environment


def test_versions_in_sentences_have_their_short_name_and_the_rest_stays_text() -> None:
    template = _environment().from_string("{{ text | with_short_versions }}")
    text = "<b>20261127T142756Z-fb253475</b> serves, 20261127T142756Z-fb25347x does not"
    assert template.render(text=text) == (
        '&lt;b&gt;<span class="version" title="20261127T142756Z-fb253475">fb253475</span>&lt;/b&gt; serves, '
        "20261127T142756Z-fb25347x does not"
    )
