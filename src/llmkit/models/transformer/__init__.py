"""A Transformer with readable source.

Importing this package registers it with the Auto classes of transformers, so that `from_pretrained`
loads its models; register your own model the same way.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import (
    TransformerForCausalLM,
    TransformerForMaskedLM,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
)
from llmkit.models.transformer.model import TransformerModel

AutoConfig.register(TransformerConfig.model_type, TransformerConfig)
AutoModel.register(TransformerConfig, TransformerModel)
AutoModelForCausalLM.register(TransformerConfig, TransformerForCausalLM)
AutoModelForMaskedLM.register(TransformerConfig, TransformerForMaskedLM)
AutoModelForSequenceClassification.register(TransformerConfig, TransformerForSequenceClassification)
AutoModelForTokenClassification.register(TransformerConfig, TransformerForTokenClassification)
