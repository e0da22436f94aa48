"""The assertions of unittest, as claims of the script."""

import unittest

from .errors import RequestedAssertionFailed


class AssertionTester(unittest.TestCase):
    failureException = RequestedAssertionFailed
