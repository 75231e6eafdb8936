"""Published methods: one function in one file named after it, in the folder of its heading in the survey."""
