"""Program, sequencing and sampling."""
