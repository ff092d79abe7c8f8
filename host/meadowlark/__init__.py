"""What runs on the computer: model readers, compiler, driver, targets, commands."""
