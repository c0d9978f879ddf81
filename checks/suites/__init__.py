"""Great Expectations suites: the belt to the rules' braces. GX takes 6 s to import, so it is imported on use."""
