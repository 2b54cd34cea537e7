import hypothesis

hypothesis.settings.register_profile(
    "tests", hypothesis.settings.get_profile("patient"), derandomize=True, max_examples=60
)
hypothesis.settings.load_profile("tests")
