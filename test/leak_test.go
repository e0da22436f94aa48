package test

const victimEnv = "ATTEST_TEST_VICTIM"
