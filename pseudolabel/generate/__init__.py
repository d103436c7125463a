"""Stage one over many images: resumable, in order or not, on one machine or many."""
