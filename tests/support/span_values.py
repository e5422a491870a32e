"""Whatever an application may have written into a span."""

from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=[]), max_size=20)
numbers = st.integers() | st.sampled_from([10**400, -(10**400)]) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.sampled_from(["modality", "confidence", "query", "agent"]), inner, max_size=4)
    ),
    max_leaves=12,
)
