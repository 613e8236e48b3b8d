"""What recurrent networks can hold, how easily they learn, and what stability costs of both.

Source: Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent Neural Networks (ICLR 2017).
"""
