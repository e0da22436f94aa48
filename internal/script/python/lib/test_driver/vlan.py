"""Networks."""


class VLan:
    def __init__(self, nr):
        self.nr = nr

    def __repr__(self):
        return f"<Vlan Nr. {self.nr}>"
