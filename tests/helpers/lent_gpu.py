"""A stand-in of the library that lends a GPU on a Space."""

import pickle


class Spaces:
    """Pickles what the library sends between processes, and notes the seconds that each call asks for."""

    def __init__(self):
        self.functions, self.asked = [], []

    def GPU(self, duration):
        def decorate(function):
            assert pickle.loads(pickle.dumps(function)) is function, "methods and closures carry models along"
            self.functions.append(function)

            def lent(*arguments):
                self.asked.append(duration(*arguments) if callable(duration) else duration)
                values = function(*pickle.loads(pickle.dumps(arguments)))
                try:
                    for value in values:
                        yield pickle.loads(pickle.dumps(value))
                finally:
                    values.close()

            return lent

        return decorate
