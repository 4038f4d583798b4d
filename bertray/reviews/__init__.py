"""Reviews in: files of every format become clean rows or refused rows with a reason, and nothing is lost between."""
