"""Other people's formats -> our episodes. A reader knows a format and no robot; a card knows a dataset and no format."""
