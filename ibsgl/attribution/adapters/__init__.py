"""Methods of other libraries, one file per library. A row of the config names the library's method with its arguments."""
