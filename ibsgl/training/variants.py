"""The variants of a network: its trained states."""

# pretrained: after the training of the classifier. guided: trained further with guidance. control: trained equally long
# without guidance.
VARIANTS = ("pretrained", "control", "guided")
