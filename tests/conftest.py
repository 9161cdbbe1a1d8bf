"""Every shape annotation of the package is checked in the whole run; the hook has to come before its first import."""

from jaxtyping import install_import_hook

install_import_hook("sparsezip", "typecheck.checked")
