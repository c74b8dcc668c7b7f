"""From a source to sections: what each tensor becomes, at which rate, and how well it came back."""
